;; The initialiser only reads; what runs later drops nothing that it needs.
;; calls: read() read()
(module
  (memory 1)
  (data $text "text of a segment")
  (func (export "wizer-initialize")
    (memory.init $text (i32.const 0) (i32.const 0) (i32.const 17))
    (memory.copy (i32.const 1000) (i32.const 0) (i32.const 17))
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 17)))
  (func (export "read") (result i32) (i32.load (i32.const 1008))
    (memory.copy (i32.const 1007) (i32.const 1000) (i32.const 17))))
