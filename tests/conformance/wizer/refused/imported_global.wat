;; wizer: imported globals are not supported
;; edged: imported-global
(module (import "env" "g" (global (mut i32))) (func (export "wizer-initialize")))
