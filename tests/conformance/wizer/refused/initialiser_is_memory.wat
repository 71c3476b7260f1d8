;; wizer: is not a function
;; edged: missing-export
(module (memory (export "wizer-initialize") 1))
