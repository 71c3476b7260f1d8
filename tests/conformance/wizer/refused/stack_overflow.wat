;; wizer: call stack exhausted
;; edged: InitTrapped
(module (func $f (export "wizer-initialize") (call $f)))
