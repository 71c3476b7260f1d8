;; Constants that nothing may rewrite, and active segments in several memories.
;; calls: get()
(module
  (memory 2)
  (global $text i32 (i32.const 65530))
  (global $count (mut i32) (i32.const 0))
  (data (i32.const 65530) "across the page")
  (func (export "wizer-initialize")
    (global.set $count (i32.load (global.get $text))))
  (func (export "get") (result i32) (global.get $count)))
