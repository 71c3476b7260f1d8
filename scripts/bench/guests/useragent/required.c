/* What every match of a pattern holds: the set of texts whose shortest is longest. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tree.h"

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

Required tree_required(const Node *tree) {
    Search inner = {.best = {0, NULL}, .length = 0};
    look(&inner, tree);
    end_run(&inner);
    return inner.best;
}

static void look_at_both(Search *search, const Node *tree) {
    Required left = tree_required(tree->left), right = tree_required(tree->right);
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
            offer(search, tree_required(tree->left));
        break;
    }
}
