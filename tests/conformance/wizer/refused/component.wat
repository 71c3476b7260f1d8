;; wizer: 
;; edged: component
(component)
