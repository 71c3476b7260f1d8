;; Active data up to the last byte, changed and not; zeros written over data.
;; calls: end() first()
(module
  (memory 1 1)
  (data (i32.const 65535) "z")
  (data (i32.const 65500) "0123456789")
  (data (i32.const 0) "erased")
  (func (export "wizer-initialize")
    (i32.store8 (i32.const 65534) (i32.const 121))
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 6)))
  (func (export "end") (result i32) (i32.load (i32.const 65532)))
  (func (export "first") (result i32) (i32.load (i32.const 0))))
