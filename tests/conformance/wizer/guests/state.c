/* What a C program's initialisation leaves behind: objects of constructors, a heap with holes,
 * a sorted index, text in stdio's buffer, the C library's own state. `report` shows all of it and
 * goes on from there, so that a byte that was lost changes what it prints or what it does.
 */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct word {
  struct word *next;
  uint32_t length;
  char text[];
};

static struct word *words;
static struct word **index_by_text;
static size_t word_count;
static double table[512];
static uint64_t constructed = 1;
static char *kept;
static const char TEXT[] =
    "it was the best of times it was the worst of times it was the age of wisdom it was the age of "
    "foolishness it was the epoch of belief it was the epoch of incredulity";

__attribute__((constructor(101))) static void first(void) { constructed = constructed * 31 + 1; }
__attribute__((constructor(102))) static void second(void) { constructed = constructed * 31 + 2; }

static int compare(const void *left, const void *right) {
  return strcmp((*(struct word *const *)left)->text, (*(struct word *const *)right)->text);
}

static void add(const char *text) {
  size_t length = strlen(text);
  struct word *word = malloc(sizeof *word + length + 1);
  if (!word) abort();
  word->length = (uint32_t)length;
  memcpy(word->text, text, length + 1);
  word->next = words;
  words = word;
  word_count++;
}

static void build(void) {
  char copy[sizeof TEXT];
  void *holes[64];
  memcpy(copy, TEXT, sizeof TEXT);
  for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) add(word);
  for (size_t i = 0; i < 64; i++) holes[i] = malloc(1000 + 37 * i);
  for (size_t i = 0; i < 64; i += 2) free(holes[i]);
  kept = holes[33];
  memset(kept, 'k', 1000);
  index_by_text = malloc(word_count * sizeof *index_by_text);
  size_t at = 0;
  for (struct word *word = words; word; word = word->next) index_by_text[at++] = word;
  qsort(index_by_text, word_count, sizeof *index_by_text, compare);
  for (int i = 0; i < 512; i++) table[i] = sin(i) * exp(i / 100.0);
  srand(7);
  (void)rand();
  errno = 42;
  printf("initialised %zu words, ", word_count); /* stays in the buffer */
}

static void report(void) {
  double sum = 0;
  printf("constructed %llu, errno %d, next %d\n", (unsigned long long)constructed, errno, rand());
  for (size_t i = 0; i < word_count; i += 5) printf("%s ", index_by_text[i]->text);
  for (int i = 0; i < 512; i++) sum += table[i];
  printf("\n%a %zu\n", sum, strspn(kept, "k"));
  for (int round = 0; round < 200; round++) {
    char *block = malloc(500 + 13 * (size_t)round);
    memset(block, round, 500);
    if (round % 3) free(block);
  }
  add("more");
  printf("%s %zu %s\n", words->text, word_count, getenv("HOME") ? "at home" : "nowhere");
}

static int program(void) {
  if (!word_count) build();
  report();
  return (int)(word_count & 63);
}

int main(void) { return program(); }

extern void __wasm_call_ctors(void);
extern void __wasm_call_dtors(void);

__attribute__((export_name("wizer.initialize"))) void initialize(void) {
  __wasm_call_ctors();
  build();
}

/* As wizer.h has it: `_start` without the constructors. */
__attribute__((export_name("wizer.resume"))) void resume(void) {
  int status = program();
  __wasm_call_dtors();
  if (status) _Exit(status);
}
