;; wizer: unsupported `table.copy` instruction
;; edged: table-mutated
(module
  (table 2 funcref) (func $f) (func $g) (elem (i32.const 0) $f $g)
  (func (export "wizer-initialize")
    (table.copy (i32.const 0) (i32.const 1) (i32.const 1))))
