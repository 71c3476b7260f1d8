;; Imports of a host that is not there yet: allowed as long as the initialiser leaves them alone.
;; calls: use() get()
(module
  (import "env" "host" (func $host (param i32 i64) (result i32)))
  (import "env" "sink" (func $sink (param f32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "wizer-initialize") (i32.store (i32.const 0) (i32.const 30)))
  (func (export "use") (result i32)
    (call $sink (f32.const 1))
    (i32.add (i32.load (i32.const 0)) (call $host (i32.const 1) (i64.const 2))))
  (func (export "get") (result i32) (i32.load (i32.const 0))))
