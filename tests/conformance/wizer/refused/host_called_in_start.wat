;; wizer: has not been defined
;; edged: import-called
(module (import "env" "f" (func $f)) (start $f) (func (export "wizer-initialize")))
