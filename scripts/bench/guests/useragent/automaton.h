/* Aho–Corasick over lower-cased bytes, as a complete transition table: one load per byte. */
#ifndef AUTOMATON_H
#define AUTOMATON_H

#include <stddef.h>
#include <stdint.h>

typedef struct Automaton Automaton;

Automaton *automaton_new(void);
void automaton_add(Automaton *automaton, const char *text, uint32_t value);
/* After the last text, before the first scan. */
void automaton_finish(Automaton *automaton);
/* Sets the bit of each value whose text is in `data`. */
void automaton_scan(const Automaton *automaton, const char *data, size_t length, uint32_t *bits);

#endif
