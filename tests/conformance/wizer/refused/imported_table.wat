;; wizer: imported tables are not supported
;; edged: imported-table
(module (import "env" "t" (table 1 funcref)) (func (export "wizer-initialize")))
