;; wizer: trapped
;; edged: InitTrapped
(module (memory 1) (func (export "wizer-initialize") unreachable))
