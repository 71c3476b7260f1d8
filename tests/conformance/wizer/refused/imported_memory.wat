;; wizer: imported memories are not supported
;; edged: imported-memory
(module (import "env" "memory" (memory 1)) (func (export "wizer-initialize")))
