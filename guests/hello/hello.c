/* raw: the query's keys are environment variables, stdout is the answer. */
#include <stdio.h>
#include <stdlib.h>

int main(void) {
    const char *name = getenv("name");
    const char *greeting = getenv("GREETING");
    printf("%s, %s!\n", greeting ? greeting : "Hello", name && *name ? name : "world");
    return 0;
}
