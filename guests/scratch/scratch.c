/* raw: what a guest can do with files. Each line says what was tried and how it ended.
 *
 * /tmp is private and empty at every start (policy tmp_bytes); /assets is there if the policy
 * mounts it, read-only; everything else does not exist.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void report(const char *what, int ok) {
    printf("%s: %s\n", what, ok ? "ok" : strerror(errno));
}

static int write_file(const char *path, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file)
        return 0;
    char block[4096];
    memset(block, 'x', sizeof block);
    int ok = 1;
    for (size_t done = 0; ok && done < bytes; done += sizeof block)
        ok = fwrite(block, 1, sizeof block, file) == sizeof block;
    int saved = errno;
    if (fclose(file) != 0)
        return 0;
    errno = saved;
    return ok;
}

static int entries(const char *path) {
    DIR *directory = opendir(path);
    if (!directory)
        return -1;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            count++;
    closedir(directory);
    return count;
}

static void show_asset(void) {
    char line[256] = "";
    FILE *file = fopen("/assets/note.txt", "r");
    if (!file) {
        report("read /assets/note.txt", 0);
        return;
    }
    if (fgets(line, sizeof line, file))
        printf("read /assets/note.txt: %s", line);
    fclose(file);
}

int main(void) {
    const char *text = getenv("bytes");
    size_t bytes = text ? strtoul(text, NULL, 10) : 4096;
    printf("files in /tmp: %d\n", entries("/tmp"));
    report("write to /tmp", write_file("/tmp/note", bytes));
    printf("files in /tmp: %d\n", entries("/tmp"));
    show_asset();
    report("write to /assets", write_file("/assets/new", 4096));
    report("write to /etc", write_file("/etc/passwd", 4096));
    report("write to /tmp/../escape", write_file("/tmp/../escape", 4096));
    report("write to /tmp/../../escape", write_file("/tmp/../../escape", 4096));
    return 0;
}
