/* Runs one JavaScript program per invocation on the QuickJS interpreter.
 *
 * The program is the file built in (SCRIPT_FILE), else argv[1] if given, else all of stdin.
 * It sees: print(...values), the same as console.log, env (an object of the environment), args (the
 * arguments left), body (stdin as text, "" when stdin was the program). An uncaught exception goes to stderr with
 * its stack, and the exit status is 1.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

/* Of linear memory. A host gives wasm frames some 512 KiB of its own stack; with 128 KiB here
 * deep recursion of the parser used that up first, a trap where a script could catch an error. */
#define SCRIPT_STACK_BYTES (64 * 1024)

extern char **environ;

#ifdef SCRIPT_FILE
static const char built_in[] = {
#embed SCRIPT_FILE suffix(, ) if_empty('\0', )
    '\0'};
#else
static const char *const built_in = NULL;
#endif

static char *read_all(FILE *file, size_t *length) {
    size_t used = 0, room = 64 * 1024;
    char *data = malloc(room);
    while (data) {
        used += fread(data + used, 1, room - used - 1, file);
        if (used < room - 1)
            break;
        room *= 2;
        char *larger = realloc(data, room);
        if (!larger)
            free(data);
        data = larger;
    }
    if (!data) {
        fputs("out of memory reading stdin\n", stderr);
        exit(1);
    }
    data[used] = '\0';
    *length = used;
    return data;
}

static JSValue js_print(JSContext *ctx, JSValueConst self, int argc, JSValueConst *argv) {
    (void)self;
    for (int i = 0; i < argc; i++) {
        size_t length;
        const char *text = JS_ToCStringLen(ctx, &length, argv[i]);
        if (!text)
            return JS_EXCEPTION;
        if (i)
            putchar(' ');
        fwrite(text, 1, length, stdout);
        JS_FreeCString(ctx, text);
    }
    putchar('\n');
    return JS_UNDEFINED;
}

static void show_text(JSContext *ctx, JSValueConst value) {
    const char *text = JS_ToCString(ctx, value);
    if (text)
        fprintf(stderr, "%s\n", text);
    JS_FreeCString(ctx, text);
}

static void show_exception(JSContext *ctx) {
    JSValue error = JS_GetException(ctx);
    show_text(ctx, error);
    if (JS_IsError(ctx, error)) {
        JSValue stack = JS_GetPropertyStr(ctx, error, "stack");
        if (!JS_IsUndefined(stack))
            show_text(ctx, stack);
        JS_FreeValue(ctx, stack);
    }
    JS_FreeValue(ctx, error);
}

static JSValue env_object(JSContext *ctx) {
    JSValue object = JS_NewObject(ctx);
    for (char **entry = environ; entry && *entry; entry++) {
        char *equals = strchr(*entry, '=');
        if (!equals)
            continue;
        JSAtom name = JS_NewAtomLen(ctx, *entry, (size_t)(equals - *entry));
        JS_DefinePropertyValue(ctx, object, name, JS_NewString(ctx, equals + 1), JS_PROP_C_W_E);
        JS_FreeAtom(ctx, name);
    }
    return object;
}

static void add_globals(JSContext *ctx, char **arguments, const char *body, size_t length) {
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue args = JS_NewArray(ctx);
    for (uint32_t i = 0; arguments[i]; i++)
        JS_SetPropertyUint32(ctx, args, i, JS_NewString(ctx, arguments[i]));
    JSValue print = JS_NewCFunction(ctx, js_print, "print", 1);
    JSValue console = JS_NewObject(ctx);
    JS_SetPropertyStr(ctx, console, "log", JS_DupValue(ctx, print));
    JS_SetPropertyStr(ctx, global, "console", console);
    JS_SetPropertyStr(ctx, global, "print", print);
    JS_SetPropertyStr(ctx, global, "env", env_object(ctx));
    JS_SetPropertyStr(ctx, global, "args", args);
    JS_SetPropertyStr(ctx, global, "body", JS_NewStringLen(ctx, body, length));
    JS_FreeValue(ctx, global);
}

/* Promise reactions and the like; 0, or -1 when one of them threw. */
static int run_jobs(JSRuntime *runtime) {
    JSContext *ctx;
    int status;
    while ((status = JS_ExecutePendingJob(runtime, &ctx)) > 0) {
    }
    if (status < 0)
        show_exception(ctx);
    return status;
}

int main(int argc, char **argv) {
    size_t stdin_length;
    char *input = read_all(stdin, &stdin_length);
    char **arguments = argv + (argc > 0);
    const char *script = built_in;
    if (!script && *arguments)
        script = *arguments++;
    const char *body = script ? input : "";
    size_t body_length = script ? stdin_length : 0;
    size_t script_length = script ? strlen(script) : stdin_length;
    if (!script)
        script = input;

    JSRuntime *runtime = JS_NewRuntime();
    JSContext *ctx = runtime ? JS_NewContext(runtime) : NULL;
    if (!ctx) {
        fputs("out of memory starting the interpreter\n", stderr);
        return 1;
    }
    JS_SetMaxStackSize(runtime, SCRIPT_STACK_BYTES);
    add_globals(ctx, arguments, body, body_length);
    JSValue result = JS_Eval(ctx, script, script_length, "function.js", JS_EVAL_TYPE_GLOBAL);
    int failed = JS_IsException(result);
    if (failed)
        show_exception(ctx);
    else
        failed = run_jobs(runtime) < 0;
    /* The instance ends here: freeing the heap object by object would only cost time. */
    fflush(stdout);
    return failed ? 1 : 0;
}
