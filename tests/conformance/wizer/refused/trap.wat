;; wizer: trapped
;; edged: init-trapped
(module (memory 1) (func (export "wizer-initialize") unreachable))
