;; Exceptions that nobody throws: nothing of them is state, but no node runs them.
;; wizer: exceptions
;; edged: invalid
(module (tag (param i32)) (func (export "wizer-initialize")))
