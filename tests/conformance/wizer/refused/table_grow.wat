;; wizer: unsupported `table.grow` instruction
;; edged: table-grown
(module
  (table 2 funcref)
  (func (export "wizer-initialize") (drop (table.grow (ref.null func) (i32.const 1)))))
