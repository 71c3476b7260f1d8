/* raw: counts the primes below ?n= by a sieve; work for the processor and for memory. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define N_DEFAULT 100000
#define N_MAX 50000000

int main(void) {
    const char *text = getenv("n");
    long n = text ? strtol(text, NULL, 10) : N_DEFAULT;
    if (n < 0 || n > N_MAX) {
        fprintf(stderr, "n = %s: 0 to %d\n", text, N_MAX);
        return 2;
    }
    uint8_t *composite = calloc((size_t)n + 1, 1);
    if (!composite) {
        fputs("out of memory: grant more, or ask for less\n", stderr);
        return 1;
    }
    long count = 0;
    for (long i = 2; i < n; i++) {
        if (composite[i])
            continue;
        count++;
        /* long has 32 bits here, too few for i * i. */
        for (int64_t j = (int64_t)i * i; j < n; j += i)
            composite[j] = 1;
    }
    printf("%ld primes below %ld\n", count, n);
    return 0;
}
