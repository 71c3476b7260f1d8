;; Vectors in memory and in a global.
;; calls: lane() store() lane()
(module
  (memory (export "memory") 1)
  (global $v (mut v128) (v128.const i32x4 1 2 3 4))
  (global $same (mut v128) (v128.const i64x2 -1 9))
  (global $constant v128 (v128.const f64x2 nan:0x8000000000001 -0.0))
  (func (export "wizer-initialize")
    (global.set $v (i32x4.add (global.get $v) (v128.const i32x4 0x7fffffff 10 100 -1)))
    (v128.store (i32.const 65520) (i8x16.swizzle (global.get $same) (global.get $v)))
    (v128.store (i32.const 32) (global.get $constant)))
  (func (export "lane") (result i32) (i32x4.extract_lane 0 (global.get $v)))
  (func (export "store") (v128.store (i32.const 0) (global.get $v))
    (global.set $v (v128.load (i32.const 65520)))))
