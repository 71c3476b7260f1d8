;; wizer: gc
;; edged: gc
(module (type (struct (field i32))) (func (export "wizer-initialize")))
