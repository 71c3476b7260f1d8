;; Wizer's instrumentation has fixed names, edged's is whatever is free.
;; wizer: already exports entities named with the `__wizer_*` prefix
;; edged: ok
;; calls: __wizer_memory_0() edged-snapshot-0:memory:0() edged-snapshot-1()
(module
  (memory (export "edged-snapshot-0:global:0") 1)
  (global (export "edged-snapshot-2:start") (mut i32) (i32.const 0))
  (func (export "__wizer_memory_0") (result i32) (i32.load (i32.const 0)))
  (func (export "edged-snapshot-0:memory:0") (result i32) (i32.const 7))
  (func (export "edged-snapshot-1") (result i32) (global.get 0))
  (func (export "wizer-initialize")
    (i32.store (i32.const 0) (i32.const 1)) (global.set 0 (i32.const 2))))
