;; wizer: out of bounds
;; edged: InitTrapped
(module (memory 1) (data (i32.const 65535) "too long") (func (export "wizer-initialize")))
