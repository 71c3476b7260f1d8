// An order as JSON in, a receipt as HTML out: checked by a JSON schema (Ajv), rendered by a
// template (Handlebars). Both are compiled when the interpreter starts, before any request.
const schema = {
  type: "object",
  required: ["customer", "lines"],
  properties: {
    customer: { type: "string", minLength: 1, maxLength: 80 },
    lines: {
      type: "array",
      minItems: 1,
      maxItems: 50,
      items: {
        type: "object",
        required: ["article", "count", "cents"],
        properties: {
          article: { type: "string", pattern: "^[A-Z]{2}-[0-9]{3}$" },
          count: { type: "integer", minimum: 1 },
          cents: { type: "integer", minimum: 0 },
        },
        additionalProperties: false,
      },
    },
  },
};
const check = new (ajv7.default ?? ajv7)({ allErrors: true, logger: false }).compile(schema);

Handlebars.registerHelper("money", (cents) => (cents / 100).toFixed(2));
const receipt = Handlebars.compile(
  "<h1>{{customer}}</h1>\n<ul>\n{{#each lines}}<li>{{count}} × {{article}}: {{money sum}}</li>\n" +
    "{{/each}}</ul>\n<p>{{money total}}</p>\n",
);
receipt({ customer: "", lines: [], total: 0 }); // the first use compiles it

function handle(text) {
  const order = JSON.parse(text || '{"customer":"nobody","lines":[]}');
  if (!check(order)) {
    return check.errors.map((error) => `${error.instancePath || "/"} ${error.message}\n`).join("");
  }
  for (const line of order.lines) line.sum = line.count * line.cents;
  order.total = order.lines.reduce((sum, line) => sum + line.sum, 0);
  return receipt(order);
}
