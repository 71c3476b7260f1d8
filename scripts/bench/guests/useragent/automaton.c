/* First a trie with lists of children; then a table of all transitions, a row per state, a column
 * per class of bytes that no text tells apart. */
#include "automaton.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "regex.h"

typedef struct {
    uint8_t byte;
    uint32_t child, sibling; /* 0: none */
    uint32_t output;         /* the first of the values that end here; 0: none */
    uint32_t suffix;         /* the longest proper suffix that is a state with values; 0: none */
} State;

typedef struct {
    uint32_t value, next;
} Output;

struct Automaton {
    State *states;
    Output *outputs; /* from 1 */
    uint32_t state_count, state_room, output_count, output_room;
    uint32_t classes;
    uint8_t class_of[256]; /* 0: in no text */
    uint32_t *next;        /* [state * classes + class] */
};

static uint32_t new_state(Automaton *automaton, uint8_t byte) {
    if (automaton->state_count == automaton->state_room) {
        automaton->state_room = automaton->state_room ? 2 * automaton->state_room : 1024;
        size_t bytes = automaton->state_room * sizeof(State);
        automaton->states = need(realloc(automaton->states, bytes));
    }
    automaton->states[automaton->state_count] = (State){.byte = byte};
    return automaton->state_count++;
}

Automaton *automaton_new(void) {
    Automaton *made = need(calloc(1, sizeof *made));
    made->classes = made->output_count = 1;
    new_state(made, 0);
    return made;
}

static uint32_t child_of(Automaton *automaton, uint32_t state, uint8_t byte) {
    uint32_t child = automaton->states[state].child;
    while (child && automaton->states[child].byte != byte)
        child = automaton->states[child].sibling;
    if (child)
        return child;
    child = new_state(automaton, byte);
    automaton->states[child].sibling = automaton->states[state].child;
    automaton->states[state].child = child;
    if (!automaton->class_of[byte])
        automaton->class_of[byte] = (uint8_t)automaton->classes++;
    return child;
}

void automaton_add(Automaton *automaton, const char *text, uint32_t value) {
    uint32_t state = 0;
    for (; *text; text++)
        state = child_of(automaton, state, (uint8_t)*text);
    if (automaton->output_count >= automaton->output_room) {
        automaton->output_room = automaton->output_room ? 2 * automaton->output_room : 1024;
        size_t bytes = automaton->output_room * sizeof(Output);
        automaton->outputs = need(realloc(automaton->outputs, bytes));
    }
    automaton->outputs[automaton->output_count] = (Output){value, automaton->states[state].output};
    automaton->states[state].output = automaton->output_count++;
}

/* Breadth first, so that the row of a state's failure state is complete before its own. */
void automaton_finish(Automaton *automaton) {
    uint32_t count = automaton->state_count, classes = automaton->classes, head = 0, tail = 0;
    uint32_t *queue = need(malloc(count * sizeof *queue));
    uint32_t *failure = need(calloc(count, sizeof *failure));
    automaton->next = need(calloc((size_t)count * classes, sizeof *automaton->next));
    for (queue[tail++] = 0; head < tail; head++) {
        uint32_t at = queue[head];
        uint32_t *row = &automaton->next[at * classes];
        const uint32_t *other = &automaton->next[failure[at] * classes];
        if (at)
            memcpy(row, other, classes * sizeof *row);
        for (uint32_t child = automaton->states[at].child; child;
             child = automaton->states[child].sibling) {
            uint32_t class = automaton->class_of[automaton->states[child].byte];
            uint32_t fallback = failure[child] = at ? other[class] : 0;
            automaton->states[child].suffix = automaton->states[fallback].output
                                                  ? fallback
                                                  : automaton->states[fallback].suffix;
            row[class] = child;
            queue[tail++] = child;
        }
    }
    free(queue);
    free(failure);
}

void automaton_scan(const Automaton *automaton, const char *data, size_t length, uint32_t *bits) {
    uint32_t at = 0;
    for (size_t i = 0; i < length; i++) {
        uint8_t class = automaton->class_of[tolower((uint8_t)data[i])];
        at = automaton->next[at * automaton->classes + class];
        for (uint32_t found = at; found; found = automaton->states[found].suffix)
            for (uint32_t o = automaton->states[found].output; o; o = automaton->outputs[o].next)
                bits[automaton->outputs[o].value >> 5] |= 1u << (automaton->outputs[o].value & 31);
    }
}
