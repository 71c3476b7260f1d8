/* Parse to a tree, compile to instructions, run by backtracking that visits each (instruction,
 * position) once, so that time is bounded by their product. */
#include "regex.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { EMPTY, BYTE, SET, CAT, ALT, REPEAT, GROUP, START, END, BOUNDARY } Kind;

typedef struct Node {
    Kind kind;
    struct Node *left, *right; /* right: of CAT and ALT */
    uint8_t byte;
    bool greedy;
    int least, most; /* of REPEAT, most -1: no bound; of GROUP least is its number */
    uint32_t *set;   /* 256 bits */
} Node;

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

typedef struct {
    const char *pattern, *at;
    bool fold;
    int groups;
} Parser;

void *need(void *memory) {
    if (!memory) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

/* ---- parsing */
static void refuse(const Parser *parser, const char *why) {
    fprintf(stderr, "%s at offset %td: %s\n", why, parser->at - parser->pattern, parser->pattern);
    exit(1);
}

static Node *node(Kind kind, Node *left, Node *right) {
    Node *made = need(calloc(1, sizeof *made));
    made->kind = kind;
    made->left = left;
    made->right = right;
    return made;
}

static void set_add(uint32_t *set, unsigned byte) { set[byte >> 5] |= 1u << (byte & 31); }

static bool set_has(const uint32_t *set, unsigned byte) {
    return set[byte >> 5] >> (byte & 31) & 1;
}

static void set_add_folded(const Parser *parser, uint32_t *set, unsigned byte) {
    set_add(set, byte);
    if (parser->fold && isalpha((int)byte))
        set_add(set, byte ^ 0x20);
}

/* d, s, w and their complements; false for any other letter. */
static bool set_add_named(uint32_t *set, char letter) {
    bool in = islower((unsigned char)letter);
    for (unsigned byte = 0; byte < 256; byte++) {
        bool member;
        switch (tolower((unsigned char)letter)) {
        case 'd': member = byte >= '0' && byte <= '9'; break;
        case 's': member = byte == ' ' || (byte >= '\t' && byte <= '\r'); break;
        case 'w': member = byte < 128 && (isalnum((int)byte) || byte == '_'); break;
        default: return false;
        }
        if (member == in)
            set_add(set, byte);
    }
    return true;
}

static Node *set_node(void) {
    Node *made = node(SET, NULL, NULL);
    made->set = need(calloc(8, sizeof *made->set));
    return made;
}

static Node *parse_class(Parser *parser) {
    Node *made = set_node();
    bool inverted = *parser->at == '^';
    parser->at += inverted;
    for (bool first = true; *parser->at != ']' || first; first = false) {
        unsigned low = (unsigned char)*parser->at++;
        if (!low)
            refuse(parser, "class without end");
        if (low == '\\') {
            char letter = *parser->at++;
            if (set_add_named(made->set, letter))
                continue;
            low = (unsigned char)letter;
        }
        unsigned high = low;
        if (parser->at[0] == '-' && parser->at[1] != ']') {
            high = (unsigned char)parser->at[1];
            parser->at += 2;
            if (high == '\\')
                high = (unsigned char)*parser->at++;
        }
        for (unsigned byte = low; byte <= high; byte++)
            set_add_folded(parser, made->set, byte);
    }
    parser->at++;
    if (inverted)
        for (int word = 0; word < 8; word++)
            made->set[word] = ~made->set[word];
    return made;
}

static Node *parse_byte(Parser *parser, char byte) {
    if (parser->fold && isalpha((unsigned char)byte)) {
        Node *made = set_node();
        set_add_folded(parser, made->set, (unsigned char)byte);
        return made;
    }
    Node *made = node(BYTE, NULL, NULL);
    made->byte = (uint8_t)byte;
    return made;
}

static Node *parse_alternatives(Parser *parser);

static Node *parse_group(Parser *parser) {
    int number = 0;
    if (parser->at[0] == '?' && parser->at[1] == ':')
        parser->at += 2;
    else if (*parser->at == '?')
        refuse(parser, "unknown group");
    else
        number = ++parser->groups;
    Node *made = parse_alternatives(parser);
    if (*parser->at++ != ')')
        refuse(parser, "group without end");
    if (number && number < GROUPS_MAX) {
        made = node(GROUP, made, NULL);
        made->least = number;
    }
    return made;
}

static Node *parse_escape(Parser *parser) {
    char letter = *parser->at++;
    if (letter == 'b')
        return node(BOUNDARY, NULL, NULL);
    Node *made = set_node();
    if (set_add_named(made->set, letter))
        return made;
    if (isalnum((unsigned char)letter) || !letter)
        refuse(parser, "unknown escape");
    return parse_byte(parser, letter);
}

static Node *parse_atom(Parser *parser) {
    char byte = *parser->at++;
    switch (byte) {
    case '(': return parse_group(parser);
    case '[': return parse_class(parser);
    case '\\': return parse_escape(parser);
    case '^': return node(START, NULL, NULL);
    case '$': return node(END, NULL, NULL);
    case '.': {
        Node *made = set_node();
        memset(made->set, 0xff, 32);
        made->set['\n' >> 5] &= ~(1u << ('\n' & 31));
        return made;
    }
    case '*': case '+': case '?': refuse(parser, "nothing to repeat");
    }
    return parse_byte(parser, byte);
}

/* Whether a repetition stands here: {n}, {n,} or {n,m}; any other { is itself. */
static bool parse_counts(Parser *parser, int *least, int *most) {
    char *end;
    const char *at = parser->at + 1;
    if (*parser->at != '{' || !isdigit((unsigned char)*at))
        return false;
    *least = *most = (int)strtol(at, &end, 10);
    if (*end == ',') {
        at = end + 1;
        *most = isdigit((unsigned char)*at) ? (int)strtol(at, &end, 10) : -1;
        if (*most < 0)
            end = (char *)at;
    }
    if (*end != '}')
        return false;
    parser->at = end + 1;
    return true;
}

static Node *parse_repeated(Parser *parser) {
    Node *made = parse_atom(parser);
    for (;;) {
        int least = 0, most = -1;
        if (*parser->at == '+')
            least = 1, parser->at++;
        else if (*parser->at == '?')
            most = 1, parser->at++;
        else if (*parser->at == '*')
            parser->at++;
        else if (!parse_counts(parser, &least, &most))
            return made;
        made = node(REPEAT, made, NULL);
        made->least = least;
        made->most = most;
        made->greedy = *parser->at != '?';
        parser->at += !made->greedy;
    }
}

static Node *parse_alternatives(Parser *parser) {
    Node *made = node(EMPTY, NULL, NULL);
    while (*parser->at && *parser->at != '|' && *parser->at != ')')
        made = node(CAT, made, parse_repeated(parser));
    if (*parser->at != '|')
        return made;
    parser->at++;
    return node(ALT, made, parse_alternatives(parser));
}

static void free_tree(Node *tree) {
    if (!tree)
        return;
    free_tree(tree->left);
    free_tree(tree->right);
    free(tree);
}

/* ---- compiling; sets stay, the instructions point at them */
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

/* ---- what every match holds */
typedef struct {
    Required best;
    char run[256];
    size_t length;
} Search;

static size_t shortest(const Required *required) {
    size_t least = required->count ? SIZE_MAX : 0;
    for (size_t i = 0; i < required->count; i++)
        if (strlen(required->texts[i]) < least)
            least = strlen(required->texts[i]);
    return least;
}

static void offer(Search *search, Required other) {
    size_t ours = shortest(&search->best), theirs = shortest(&other);
    if (theirs > ours || (theirs == ours && other.count < search->best.count))
        search->best = other;
}

static void end_run(Search *search) {
    if (search->length) {
        Required one = {1, need(malloc(sizeof(char *)))};
        search->run[search->length] = '\0';
        one.texts[0] = need(strdup(search->run));
        offer(search, one);
    }
    search->length = 0;
}

/* The lower-case letter that all members are, or 0. */
static char only_letter(const Node *tree) {
    char found = 0;
    if (tree->kind == BYTE)
        return (char)tolower(tree->byte);
    for (unsigned byte = 0; byte < 256; byte++)
        if (set_has(tree->set, byte)) {
            char lower = (char)tolower((int)byte);
            if (found && lower != found)
                return 0;
            found = lower;
        }
    return found;
}

static void look(Search *search, const Node *tree);

static Required required_of(const Node *tree) {
    Search inner = {.best = {0, NULL}, .length = 0};
    look(&inner, tree);
    end_run(&inner);
    return inner.best;
}

static void look_at_both(Search *search, const Node *tree) {
    Required left = required_of(tree->left), right = required_of(tree->right);
    if (!left.count || !right.count)
        return;
    Required both = {left.count + right.count, NULL};
    both.texts = need(malloc(both.count * sizeof(char *)));
    memcpy(both.texts, left.texts, left.count * sizeof(char *));
    memcpy(both.texts + left.count, right.texts, right.count * sizeof(char *));
    offer(search, both);
}

static void look(Search *search, const Node *tree) {
    char letter;
    switch (tree->kind) {
    case EMPTY: case START: case END: case BOUNDARY: break;
    case BYTE: case SET:
        letter = only_letter(tree);
        if (!letter || search->length == sizeof search->run - 1)
            end_run(search);
        if (letter)
            search->run[search->length++] = letter;
        break;
    case CAT:
        look(search, tree->left);
        look(search, tree->right);
        break;
    case GROUP: look(search, tree->left); break;
    case ALT:
        end_run(search);
        look_at_both(search, tree);
        break;
    case REPEAT:
        end_run(search);
        if (tree->least)
            offer(search, required_of(tree->left));
        break;
    }
}

Program *regex_compile(const char *pattern, bool fold, Required *required) {
    Parser parser = {pattern, pattern, fold, 0};
    Node *tree = parse_alternatives(&parser);
    if (*parser.at)
        refuse(&parser, "more than a pattern");
    Program *program = need(calloc(1, sizeof *program));
    compile(program, tree);
    emit(program, I_MATCH);
    program->code = need(realloc(program->code, program->count * sizeof *program->code));
    *required = required_of(tree);
    free_tree(tree);
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
