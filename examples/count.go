// Count hits in Tally from Go, each of them once, however often it has to be sent. It needs only the standard library.
// docs/how-to/instrument-go.md counts in the background.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"
)

const tries = 6

var client = http.Client{Timeout: 5 * time.Second}

// Hit has the optional fields of a hit.
type Hit struct {
	By      int    `json:"by,omitempty"`
	User    string `json:"user,omitempty"`
	Session string `json:"session,omitempty"`
}

// Count counts a hit, and returns Tally's response. The key belongs to what you count, such as an order number.
// It returns an error if Tally rejects the hit, or after six tries. Then correct the cause, and call it again with the same
// key: within 24 hours, the hit is counted once.
func Count(event, key string, hit Hit) (string, error) {
	body, err := json.Marshal(hit)
	if err != nil {
		return "", err
	}
	for attempt := 1; ; attempt++ {
		response, rejected, err := send(event, key, body)
		if err == nil || rejected || attempt == tries {
			return response, err
		}
		time.Sleep(100 * time.Millisecond << attempt)
	}
}

func send(event, key string, hit []byte) (answer string, rejected bool, err error) {
	address := os.Getenv("TALLY_URL")
	if address == "" {
		address = "http://127.0.0.1:8000"
	}
	request, err := http.NewRequest("POST", address+"/event/"+url.PathEscape(event), bytes.NewReader(hit))
	if err != nil {
		return "", true, err
	}
	request.Header.Set("Idempotency-Key", key)
	if apiKey := os.Getenv("TALLY_KEY"); apiKey != "" {
		request.Header.Set("Authorization", "Bearer "+apiKey)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", false, err
	}
	defer response.Body.Close()
	if method := response.Request.Method; method != "POST" {
		return "", true, fmt.Errorf("a redirect has made a %s of the POST: use %s", method, response.Request.URL)
	}
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		rejected = response.StatusCode < 500 && response.StatusCode != http.StatusTooManyRequests
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), rejected, err
}

func main() {
	response, err := Count("order", "order-20", Hit{By: 3, User: "u-17"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(response)
}
