;; wizer: does not have type
;; edged: initializer-type
(module (func (export "wizer-initialize") (param i32)))
