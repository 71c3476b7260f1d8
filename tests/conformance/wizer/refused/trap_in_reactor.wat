;; wizer: unreachable
;; edged: InitTrapped
(module (memory 1) (func (export "_initialize") unreachable) (func (export "wizer-initialize")))
