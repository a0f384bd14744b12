/* cuDNN as far as the frontend in ONNX Runtime needs it: any graph has one plan, and a run of it is a node of a capture.
 * The functions that are not here succeed and do nothing; `check.py` adds them. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void stand_in_record(const char *name);

size_t cudnnGetVersion(void) { return 92800; }
int cudnnCreate(void **handle) { *handle = (void *)1; return 0; }
const char *cudnnGetErrorString(int status) { (void)status; return "stand-in"; }

int cudnnBackendCreateDescriptor(int type, void **descriptor) { (void)type; *descriptor = malloc(1); return 0; }
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return 0; }
int cudnnBackendExecute(void) { stand_in_record("cudnnBackendExecute"); return 0; }

enum { RESULTS_OF_HEURISTICS = 202, ENGINE_OF_CONFIG = 300, INT64 = 3, INT32 = 23 };
int cudnnBackendGetAttribute(void *descriptor, int attribute, int type, int64_t room, int64_t *count, void *values) {
    (void)descriptor;
    int is_number = type == INT64 || type == INT32;
    if (count) *count = is_number || attribute == RESULTS_OF_HEURISTICS || attribute == ENGINE_OF_CONFIG;
    /* A plan takes no workspace and no shared memory. */
    if (is_number && values && room) memset(values, 0, type == INT64 ? 8 : 4);
    return 0;
}
