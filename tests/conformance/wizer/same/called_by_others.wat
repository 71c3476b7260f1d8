;; The initialiser's export goes; the function stays, as others call it and the table has it.
;; calls: again() again() by_table() exported_twice()
(module
  (memory 1)
  (table 1 funcref)
  (elem (i32.const 0) $init)
  (func $init (export "wizer-initialize") (export "exported_twice")
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
  (func (export "again") (result i32) (call $init) (i32.load (i32.const 0)))
  (func (export "by_table") (result i32) (call_indirect (i32.const 0)) (i32.load (i32.const 0))))
