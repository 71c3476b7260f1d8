/* Compiles a tree to instructions, and runs them by backtracking that visits each (instruction,
 * position) once, so that time is bounded by their product. */
#include "regex.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tree.h"

typedef enum { I_BYTE, I_SET, I_SPLIT, I_JUMP, I_SAVE, I_START, I_END, I_BOUNDARY, I_MATCH } Op;

typedef struct {
    uint8_t op, byte;
    uint32_t x, y; /* SPLIT tries x first */
    const uint32_t *set;
} Instruction;

struct Program {
    size_t count, room;
    Instruction *code;
};

/* ---- compiling */
static uint32_t emit(Program *program, Op op) {
    if (program->count == program->room) {
        program->room = program->room ? 2 * program->room : 64;
        size_t bytes = program->room * sizeof *program->code;
        program->code = need(realloc(program->code, bytes));
    }
    memset(&program->code[program->count], 0, sizeof *program->code);
    program->code[program->count].op = (uint8_t)op;
    return (uint32_t)program->count++;
}

static void compile(Program *program, const Node *tree);

/* One more time or on; where to patch the way on. */
static uint32_t compile_split(Program *program, const Node *tree) {
    uint32_t split = emit(program, I_SPLIT);
    compile(program, tree->left);
    return split;
}

static void patch(Program *program, const Node *tree, uint32_t split, uint32_t on) {
    Instruction *code = &program->code[split];
    code->x = tree->greedy ? split + 1 : on;
    code->y = tree->greedy ? on : split + 1;
}

static void compile_repeat(Program *program, const Node *tree) {
    for (int time = 0; time < tree->least; time++)
        compile(program, tree->left);
    if (tree->most < 0) {
        uint32_t split = compile_split(program, tree);
        uint32_t jump = emit(program, I_JUMP);
        program->code[jump].x = split;
        patch(program, tree, split, jump + 1);
        return;
    }
    int more = tree->most - tree->least;
    uint32_t *splits = need(calloc((size_t)more + 1, sizeof *splits));
    for (int time = 0; time < more; time++)
        splits[time] = compile_split(program, tree);
    for (int time = 0; time < more; time++)
        patch(program, tree, splits[time], (uint32_t)program->count);
    free(splits);
}

static void compile(Program *program, const Node *tree) {
    uint32_t at, jump;
    switch (tree->kind) {
    case EMPTY: break;
    case BYTE:
        at = emit(program, I_BYTE);
        program->code[at].byte = tree->byte;
        break;
    case SET:
        at = emit(program, I_SET);
        program->code[at].set = tree->set;
        break;
    case CAT:
        compile(program, tree->left);
        compile(program, tree->right);
        break;
    case ALT:
        at = emit(program, I_SPLIT);
        compile(program, tree->left);
        jump = emit(program, I_JUMP);
        program->code[at].x = at + 1;
        program->code[at].y = jump + 1;
        compile(program, tree->right);
        program->code[jump].x = (uint32_t)program->count;
        break;
    case REPEAT: compile_repeat(program, tree); break;
    case GROUP:
        at = emit(program, I_SAVE);
        program->code[at].x = 2 * (uint32_t)tree->least;
        compile(program, tree->left);
        at = emit(program, I_SAVE);
        program->code[at].x = 2 * (uint32_t)tree->least + 1;
        break;
    case START: emit(program, I_START); break;
    case END: emit(program, I_END); break;
    case BOUNDARY: emit(program, I_BOUNDARY); break;
    }
}

Program *regex_compile(const char *pattern, bool fold, Required *required) {
    Node *tree = tree_parse(pattern, fold);
    Program *program = need(calloc(1, sizeof *program));
    compile(program, tree);
    emit(program, I_MATCH);
    program->code = need(realloc(program->code, program->count * sizeof *program->code));
    *required = tree_required(tree);
    tree_free(tree);
    return program;
}

/* ---- running */
typedef struct {
    uint32_t at;     /* UINT32_MAX: put `old` back into ends[slot] */
    uint32_t slot;
    size_t position, old;
} Job;

typedef struct {
    Job *jobs;
    size_t count, room;
} Stack;

static void push(Stack *stack, Job job) {
    if (stack->count == stack->room) {
        stack->room = stack->room ? 2 * stack->room : 256;
        stack->jobs = need(realloc(stack->jobs, stack->room * sizeof(Job)));
    }
    stack->jobs[stack->count++] = job;
}

static bool is_word(const char *text, size_t length, size_t position) {
    return position < length && (isalnum((unsigned char)text[position]) || text[position] == '_');
}

static bool holds(const Instruction *code, const char *text, size_t length, size_t position) {
    switch (code->op) {
    case I_BYTE: return position < length && (uint8_t)text[position] == code->byte;
    case I_SET: return position < length && set_has(code->set, (uint8_t)text[position]);
    case I_START: return position == 0;
    case I_END: return position == length;
    default: /* I_BOUNDARY */
        return is_word(text, length, position) != (position && is_word(text, length, position - 1));
    }
}

/* From one instruction and position until it fails or matches. */
static bool follow(const Program *program, const char *text, size_t length, Job job,
                   uint8_t *visited, Stack *stack, size_t *ends) {
    for (uint32_t at = job.at;;) {
        const Instruction *code = &program->code[at];
        size_t bit = at * (length + 1) + job.position;
        if (visited[bit >> 3] >> (bit & 7) & 1)
            return false;
        visited[bit >> 3] |= (uint8_t)(1 << (bit & 7));
        switch (code->op) {
        case I_MATCH: ends[1] = job.position; return true;
        case I_JUMP: at = code->x; break;
        case I_SPLIT:
            push(stack, (Job){code->y, 0, job.position, 0});
            at = code->x;
            break;
        case I_SAVE:
            push(stack, (Job){UINT32_MAX, code->x, 0, ends[code->x]});
            ends[code->x] = job.position;
            at++;
            break;
        default:
            if (!holds(code, text, length, job.position))
                return false;
            job.position += code->op == I_BYTE || code->op == I_SET;
            at++;
        }
    }
}

bool regex_search(const Program *program, const char *text, size_t length,
                  size_t ends[2 * GROUPS_MAX]) {
    uint8_t *visited = need(calloc(program->count * (length + 1) / 8 + 1, 1));
    Stack stack = {NULL, 0, 0};
    bool found = false;
    for (size_t start = 0; start <= length && !found; start++) {
        memset(ends, 0xff, 2 * GROUPS_MAX * sizeof *ends);
        ends[0] = start;
        push(&stack, (Job){0, 0, start, 0});
        while (stack.count && !found) {
            Job job = stack.jobs[--stack.count];
            if (job.at == UINT32_MAX)
                ends[job.slot] = job.old;
            else
                found = follow(program, text, length, job, visited, &stack, ends);
        }
    }
    free(stack.jobs);
    free(visited);
    return found;
}
