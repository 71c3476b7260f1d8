/* Regular expressions as the public browser-detection patterns use them: bytes, classes, \d \s \w
 * \b, alternation, groups, {n,m} and its lazy form, ^ and $; leftmost match, in Perl's preference.
 */
#ifndef REGEX_H
#define REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GROUPS_MAX = 10 };

typedef struct Program Program;

/* Texts of which every match holds at least one, in lower case; none: nothing is known. */
typedef struct {
    size_t count;
    char **texts;
} Required;

/* Exits with a message for a pattern outside the language above. */
Program *regex_compile(const char *pattern, bool fold, Required *required);

/* The offsets of group g are ends[2g] and ends[2g + 1]; SIZE_MAX where it took no part. */
bool regex_search(const Program *program, const char *text, size_t length,
                  size_t ends[2 * GROUPS_MAX]);

void *need(void *memory);

#endif
