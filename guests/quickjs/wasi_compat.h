/* Included before every QuickJS source: what it expects of a libc and WASI's does not have.
 *
 * Memory is accounted by requested size alone, as in QuickJS's own Emscripten build. WebAssembly
 * rounds only to nearest, so a digit string that ends in 5 counts as an exact half: toFixed may
 * round such a value away from zero.
 */
#ifndef WASI_COMPAT_H
#define WASI_COMPAT_H

#include <fenv.h>
#include <stddef.h>

#ifndef FE_DOWNWARD
#define FE_DOWNWARD 1
#define FE_UPWARD 2
#endif

static inline size_t malloc_usable_size(const void *pointer) {
    (void)pointer;
    return 0;
}

#endif
