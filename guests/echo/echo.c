/* cgi: shows what a request looks like from inside; /status/N and /redirect/PATH answer so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static void show_request(int argc, char **argv) {
    printf("%s %s?%s\n", variable("REQUEST_METHOD"), variable("PATH_INFO"),
           variable("QUERY_STRING"));
    for (int i = 1; i < argc; i++)
        printf("argv[%d] = %s\n", i, argv[i]);
    for (char **entry = environ; entry && *entry; entry++)
        if (strncmp(*entry, "HTTP_", 5) == 0 || strncmp(*entry, "CONTENT_", 8) == 0)
            printf("%s\n", *entry);
    putchar('\n');
}

static void copy_body(void) {
    char buffer[16 * 1024];
    size_t length;
    while ((length = fread(buffer, 1, sizeof buffer, stdin)) > 0)
        fwrite(buffer, 1, length, stdout);
}

int main(int argc, char **argv) {
    const char *path = variable("PATH_INFO");
    if (strncmp(path, "/redirect/", 10) == 0) {
        printf("Location: /%s\n\n", path + 10);
        return 0;
    }
    if (strncmp(path, "/status/", 8) == 0)
        printf("Status: %d As asked\r\n", atoi(path + 8));
    fputs("Content-Type: text/plain; charset=utf-8\r\nX-Guest: echo\r\n\r\n", stdout);
    if (strcmp(path, "/body") != 0)
        show_request(argc, argv);
    copy_body();
    fprintf(stderr, "echo answered %s %s\n", variable("REQUEST_METHOD"), path);
    return 0;
}
