;; wizer: does not have a `wizer-initialize` export
;; edged: no-initializer
(module (memory 1) (func (export "main")))
