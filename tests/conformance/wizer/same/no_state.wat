;; An initialiser that leaves nothing behind.
;; calls: add(3, 4)
(module
  (memory 0 0)
  (func (export "wizer-initialize"))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
