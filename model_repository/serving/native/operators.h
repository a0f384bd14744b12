/* What the operators of this library share: their domain, and what ONNX Runtime asks of every one of them. */
#ifndef PERSONAPLEX_OPERATORS_H
#define PERSONAPLEX_OPERATORS_H

#include "onnxruntime_abi.h"

#define TRY(CALL) \
    do { \
        Status *status = (CALL); \
        if (status) return status; \
    } while (0)

/* The API that the library was registered with; shapes are inferred without a kernel, which would know it. */
extern const Api *registered_api;

extern const Op block_product, elu_convolution, elu_projection;

static inline size_t tasks(size_t items, size_t per_task) { return (items + per_task - 1) / per_task; }

/* The data and the number of elements of operand `index`, which must be a constant. */
Status *constant(const Api *api, const KernelInfo *info, size_t index, size_t *elements, const void **data);

const char *on_cpu(const Op *op);
int required(const Op *op, size_t index);
int default_memory(const Op *op, size_t index);
int none(const Op *op);
int first_version(const Op *op);
int last_version(const Op *op);

/* The fields of an operator that are the same for all. */
#define COMMON_FIELDS \
    .version = ABI_VERSION, .provider = on_cpu, .input_memory = default_memory, .variadic_input_least = none, \
    .variadic_input_same = none, .variadic_output_least = none, .variadic_output_same = none, \
    .output_kind = required, .first_version = first_version, .last_version = last_version

#endif
