// Validates custom resources, a JSON list on stdin, with the schemas of their operators. Prints a JSON list of errors.
import * as gateway from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import * as keda from "@kubernetes-models/keda/keda.sh/v1alpha1";
import * as prometheus from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { readFileSync } from "node:fs";

const kinds = { ...gateway, ...keda, ...prometheus };
const errors = [];
for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[manifest.kind](manifest).validate();
  } catch (error) {
    errors.push(`${manifest.kind}: ${error.message}`);
  }
}
console.log(JSON.stringify(errors));
