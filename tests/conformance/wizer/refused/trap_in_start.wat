;; wizer: unreachable
;; edged: InitTrapped
(module (memory 1) (func $s unreachable) (start $s) (func (export "wizer-initialize")))
