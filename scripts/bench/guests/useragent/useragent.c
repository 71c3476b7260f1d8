/* Which browser, system and device a User-Agent header names: ?ua=… or HTTP_USER_AGENT, as JSON.
 *
 * PATTERNS_FILE has the public list (uap-core), in order: P(kind, pattern, fold, name, more…).
 * Of each kind the first that matches decides. Initialising compiles all of them, and an automaton
 * of the texts they need, so that a request tries the few that can match. `wizer.initialize` does
 * it for a snapshot; without one the first call does, and answers the same. It may run before any
 * constructor: there are none here but the C library's, which allocating memory does not need.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "automaton.h"
#include "regex.h"

enum { BROWSER, SYSTEM, DEVICE, KINDS };
enum { FIELDS = 5, TEXT_MAX = 2048, FIELD_MAX = 512 };

typedef struct {
    int kind;
    const char *pattern;
    bool fold;
    const char *fields[FIELDS]; /* NULL: the group of that number */
} Pattern;

static const Pattern patterns[] = {
#define P(kind, pattern, fold, ...) {kind, pattern, fold, {__VA_ARGS__}},
#include PATTERNS_FILE
};
enum { PATTERNS = sizeof patterns / sizeof *patterns };

static const char *const kinds[KINDS] = {"browser", "os", "device"};
static const char *const names[KINDS][FIELDS] = {
    {"family", "major", "minor", "patch"},
    {"family", "major", "minor", "patch", "build"},
    {"family", "brand", "model"},
};

static bool ready;
static Program *programs[PATTERNS];
static Automaton *automaton;
static uint32_t always[PATTERNS / 32 + 1]; /* nothing is known of what these need */

__attribute__((export_name("wizer.initialize"))) void initialize(void) {
    automaton = automaton_new();
    for (uint32_t i = 0; i < PATTERNS; i++) {
        Required required;
        programs[i] = regex_compile(patterns[i].pattern, patterns[i].fold, &required);
        for (size_t text = 0; text < required.count; text++)
            automaton_add(automaton, required.texts[text], i);
        if (!required.count)
            always[i >> 5] |= 1u << (i & 31);
    }
    automaton_finish(automaton);
    ready = true;
}

static void put_json(const char *text) {
    putchar('"');
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < ' ')
            printf("\\u%04x", *text);
        else
            putchar(*text);
    putchar('"');
}

/* `form` with $1 to $9 replaced by groups; without a form, the group of that number. */
static void expand(const char *form, int number, const char *text, const size_t *ends, char *into) {
    char of_number[3] = {'$', (char)('0' + number), '\0'};
    size_t used = 0;
    for (form = form ? form : of_number; *form && used < FIELD_MAX - 1; form++) {
        if (*form != '$' || form[1] < '1' || form[1] > '9') {
            into[used++] = *form;
            continue;
        }
        const size_t *group = &ends[2 * (*++form - '0')];
        size_t length = group[0] == SIZE_MAX || group[1] == SIZE_MAX ? 0 : group[1] - group[0];
        if (length > FIELD_MAX - 1 - used)
            length = FIELD_MAX - 1 - used;
        memcpy(into + used, text + (length ? group[0] : 0), length);
        used += length;
    }
    while (used && into[used - 1] == ' ')
        used--;
    into[used] = '\0';
    size_t blank = strspn(into, " ");
    memmove(into, into + blank, used - blank + 1);
}

static void put_kind(int kind, const Pattern *pattern, const char *text, const size_t *ends) {
    printf("%s\"%s\":{", kind ? "," : "", kinds[kind]);
    for (int field = 0; field < FIELDS && names[kind][field]; field++) {
        char value[FIELD_MAX] = "Other";
        if (pattern) {
            /* A device's model is its first group; its brand is none, unless it is said. */
            int number = kind == DEVICE && field == 2 ? 1 : field + 1;
            bool none = kind == DEVICE && field == 1 && !pattern->fields[field];
            expand(none ? "" : pattern->fields[field], number, text, ends, value);
        }
        if (*value && (pattern || !field)) {
            printf("%s\"%s\":", field ? "," : "", names[kind][field]);
            put_json(value);
        }
    }
    putchar('}');
}

static void detect(const char *text, size_t length) {
    uint32_t bits[PATTERNS / 32 + 1];
    memcpy(bits, always, sizeof bits);
    automaton_scan(automaton, text, length, bits);
    putchar('{');
    for (int kind = 0; kind < KINDS; kind++) {
        size_t ends[2 * GROUPS_MAX];
        const Pattern *found = NULL;
        for (uint32_t i = 0; i < PATTERNS && !found; i++)
            if (patterns[i].kind == kind && bits[i >> 5] >> (i & 31) & 1
                && regex_search(programs[i], text, length, ends))
                found = &patterns[i];
        put_kind(kind, found, text, ends);
    }
    puts("}");
}

int main(void) {
    if (!ready)
        initialize();
    const char *text = getenv("ua");
    if (!text)
        text = getenv("HTTP_USER_AGENT");
    detect(text ? text : "", text ? strnlen(text, TEXT_MAX) : 0);
}
