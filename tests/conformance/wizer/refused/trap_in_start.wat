;; wizer: unreachable
;; edged: init-trapped
(module (memory 1) (func $s unreachable) (start $s) (func (export "wizer-initialize")))
