;; wizer: shared memory
;; edged: shared-memory
(module (memory 1 1 shared) (func (export "wizer-initialize")))
