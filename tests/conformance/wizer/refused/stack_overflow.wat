;; wizer: call stack exhausted
;; edged: init-trapped
(module (func $f (export "wizer-initialize") (call $f)))
