;; wizer: does not have a `wizer-initialize` export
;; edged: missing-export
(module (memory 1) (func (export "main")))
