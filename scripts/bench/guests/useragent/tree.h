/* A pattern as a tree: what parsing makes, and compiling and looking for texts read. */
#ifndef TREE_H
#define TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "regex.h"

typedef enum { EMPTY, BYTE, SET, CAT, ALT, REPEAT, GROUP, START, END, BOUNDARY } Kind;

typedef struct Node {
    Kind kind;
    struct Node *left, *right; /* right: of CAT and ALT */
    uint8_t byte;
    bool greedy;
    int least, most; /* of REPEAT, most -1: no bound; of GROUP least is its number */
    uint32_t *set;   /* 256 bits */
} Node;

/* Exits with a message for a pattern that is none. */
Node *tree_parse(const char *pattern, bool fold);
/* Sets stay: programs point at them. */
void tree_free(Node *tree);
Required tree_required(const Node *tree);

static inline bool set_has(const uint32_t *set, unsigned byte) {
    return set[byte >> 5] >> (byte & 31) & 1;
}

#endif
