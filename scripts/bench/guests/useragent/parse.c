#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tree.h"

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

void tree_free(Node *tree) {
    if (!tree)
        return;
    tree_free(tree->left);
    tree_free(tree->right);
    free(tree);
}

Node *tree_parse(const char *pattern, bool fold) {
    Parser parser = {pattern, pattern, fold, 0};
    Node *tree = parse_alternatives(&parser);
    if (*parser.at)
        refuse(&parser, "more than a pattern");
    return tree;
}
