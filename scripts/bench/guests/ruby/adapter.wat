;; Ruby's reactor module as a command: its host's functions, and an initialiser that starts the
;; interpreter and evaluates handler.rb, once; `_start` sends what that gave `call`.
;;
;; Merged with Ruby's module, whose memory it shares. Ruby calls no function of a JavaScript host
;; unless asked to, so those trap.
(module
  (import "ruby" "memory" (memory 0))
  (import "ruby" "_initialize" (func $construct))
  (import "ruby" "cabi_realloc"
    (func $allocate (param i32 i32 i32 i32) (result i32)))
  (import "ruby" "ruby-init: func(args: list<string>) -> ()"
    (func $ruby_init (param i32 i32)))
  (import "ruby" "rb-eval-string-protect: func(str: string) -> tuple<handle<rb-abi-value>, s32>"
    (func $eval (param i32 i32) (result i32)))
  (import "ruby" "rb-intern: func(name: string) -> u32"
    (func $intern (param i32 i32) (result i32)))
  (import "ruby" "rb-funcallv-protect: func(recv: handle<rb-abi-value>, mid: u32, args: list<handle<rb-abi-value>>) -> tuple<handle<rb-abi-value>, s32>"
    (func $send (param i32 i32 i32 i32) (result i32)))

  (data $name "ruby\00")
  (data $encoding "-EUTF-8\00")
  (data $gems "--disable=gems\00")
  (data $nothing "-e_=0\00")
  (data $call "call\00")
  (data $handler "{handler}\00")

  (global $constructed (mut i32) (i32.const 0))
  (global $ready (mut i32) (i32.const 0))
  (global $receiver (mut i32) (i32.const 0))
  (global $method (mut i32) (i32.const 0))

  ;; Room for that many bytes, which whoever is given it frees.
  (func $room (param $bytes i32) (result i32)
    (call $allocate (i32.const 0) (i32.const 0) (i32.const 4) (local.get $bytes)))
  (func $put (param $list i32) (param $index i32) (param $text i32) (param $bytes i32)
    (local.set $list (i32.add (local.get $list) (i32.shl (local.get $index) (i32.const 3))))
    (i32.store (local.get $list) (local.get $text))
    (i32.store offset=4 (local.get $list) (local.get $bytes)))
  ;; The object of a result; traps if an exception was raised.
  (func $object (param $result i32) (result i32)
    (if (i32.load offset=4 (local.get $result)) (then (unreachable)))
    (i32.load (local.get $result)))

  (func (export "_initialize")
    (if (i32.eqz (global.get $constructed)) (then
      (global.set $constructed (i32.const 1))
      (call $construct))))

  (func $prepare (export "wizer.initialize")
    (local $list i32) (local $text i32)
    (if (i32.eqz (global.get $constructed)) (then
      (global.set $constructed (i32.const 1))
      (call $construct)))
    (local.set $list (call $room (i32.const 32)))
    (local.set $text (call $room (i32.const 5)))
    (memory.init $name (local.get $text) (i32.const 0) (i32.const 5))
    (call $put (local.get $list) (i32.const 0) (local.get $text) (i32.const 5))
    (local.set $text (call $room (i32.const 8)))
    (memory.init $encoding (local.get $text) (i32.const 0) (i32.const 8))
    (call $put (local.get $list) (i32.const 1) (local.get $text) (i32.const 8))
    (local.set $text (call $room (i32.const 15)))
    (memory.init $gems (local.get $text) (i32.const 0) (i32.const 15))
    (call $put (local.get $list) (i32.const 2) (local.get $text) (i32.const 15))
    (local.set $text (call $room (i32.const 6)))
    (memory.init $nothing (local.get $text) (i32.const 0) (i32.const 6))
    (call $put (local.get $list) (i32.const 3) (local.get $text) (i32.const 6))
    (call $ruby_init (local.get $list) (i32.const 4))
    (local.set $text (call $room (i32.const {handler_bytes})))
    (memory.init $handler (local.get $text) (i32.const 0) (i32.const {handler_bytes}))
    (global.set $receiver
      (call $object (call $eval (local.get $text) (i32.const {handler_bytes}))))
    (local.set $text (call $room (i32.const 5)))
    (memory.init $call (local.get $text) (i32.const 0) (i32.const 5))
    (global.set $method (call $intern (local.get $text) (i32.const 5)))
    (global.set $ready (i32.const 1)))

  (func (export "_start")
    (if (i32.eqz (global.get $ready)) (then (call $prepare)))
    (drop (call $object
      (call $send (global.get $receiver) (global.get $method) (i32.const 0) (i32.const 0)))))

{host}
)
