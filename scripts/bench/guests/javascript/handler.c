/* A JavaScript function on QuickJS: BUNDLE_FILE, libraries and handler in one, is evaluated once;
 * each request calls its `handle` with ?order=… or the body, and gets what that returns.
 *
 * `wizer.initialize` evaluates it for a snapshot; without one the first call does. It may run
 * before any constructor: there are none here but the C library's, which this does not need.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

enum { SCRIPT_STACK_BYTES = 64 * 1024, BODY_MAX = 64 * 1024 };

static const char bundle[] = {
#embed BUNDLE_FILE suffix(, )
    '\0'};

static bool ready;
static JSContext *context;
static JSValue handle;

static int fail(void) {
    JSValue error = JS_GetException(context);
    const char *text = JS_ToCString(context, error);
    fprintf(stderr, "%s\n", text ? text : "out of memory");
    return 1;
}

__attribute__((export_name("wizer.initialize"))) void initialize(void) {
    JSRuntime *runtime = JS_NewRuntime();
    context = runtime ? JS_NewContext(runtime) : NULL;
    if (!context)
        abort();
    JS_SetMaxStackSize(runtime, SCRIPT_STACK_BYTES);
    JSValue result = JS_Eval(context, bundle, sizeof bundle - 1, "bundle.js", JS_EVAL_TYPE_GLOBAL);
    if (JS_IsException(result))
        exit(fail());
    JSValue global = JS_GetGlobalObject(context);
    handle = JS_GetPropertyStr(context, global, "handle");
    ready = true;
}

int main(void) {
    static char body[BODY_MAX];
    if (!ready)
        initialize();
    const char *text = getenv("order");
    if (!text) {
        body[fread(body, 1, sizeof body - 1, stdin)] = '\0';
        text = body;
    }
    JSValue argument = JS_NewString(context, text);
    JSValue result = JS_Call(context, handle, JS_UNDEFINED, 1, &argument);
    if (JS_IsException(result))
        return fail();
    size_t length;
    const char *answer = JS_ToCStringLen(context, &length, result);
    return !answer || fwrite(answer, 1, length, stdout) != length;
}
