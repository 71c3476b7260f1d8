;; Wizer refuses the instruction wherever it stands, edged the change.
;; wizer: unsupported `table.set` instruction
;; edged: table-mutated
(module
  (table 2 funcref) (func $f) (elem declare func $f)
  (func (export "wizer-initialize") (table.set (i32.const 0) (ref.func $f))))
