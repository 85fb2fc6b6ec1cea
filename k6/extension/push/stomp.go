package push

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

// frame is a STOMP 1.2 frame; a heart-beat has no command.
type frame struct {
	command string
	headers map[string]string
	body    []byte
}

var (
	errFrame = errors.New("not a STOMP frame")
	escape   = strings.NewReplacer("\\", "\\\\", "\r", "\\r", "\n", "\\n", ":", "\\c")
)

// encode writes a frame without a body; headers in the order given: name, value, name, value.
func encode(command string, headers ...string) []byte {
	var out bytes.Buffer
	out.WriteString(command)
	for i := 0; i+1 < len(headers); i += 2 {
		name, value := headers[i], headers[i+1]
		if command != "CONNECT" { // 1.0 knew no escapes, so CONNECT has none
			name, value = escape.Replace(name), escape.Replace(value)
		}
		out.WriteString("\n" + name + ":" + value)
	}
	out.WriteString("\n\n\x00")
	return out.Bytes()
}

// decode reads the frames in one WebSocket message: those before a broken one, and an error for it.
func decode(message []byte) ([]frame, error) {
	var frames []frame
	for {
		rest := bytes.TrimLeft(message, "\r\n")
		if len(rest) == 0 {
			return frames, nil
		}
		one, after, err := decodeOne(rest)
		if err != nil {
			return frames, err
		}
		frames, message = append(frames, one), after
	}
}

func decodeOne(message []byte) (frame, []byte, error) {
	found := frame{headers: map[string]string{}}
	for first := true; ; first = false {
		end := bytes.IndexByte(message, '\n')
		if end < 0 {
			return frame{}, nil, errFrame
		}
		line := strings.TrimSuffix(string(message[:end]), "\r")
		message = message[end+1:]
		if first {
			found.command = line
			continue
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return frame{}, nil, errFrame
		}
		if found.command != "CONNECTED" {
			var bad [2]error
			name, bad[0] = unescape(name)
			value, bad[1] = unescape(value)
			if errors.Join(bad[0], bad[1]) != nil {
				return frame{}, nil, errFrame
			}
		}
		if _, repeated := found.headers[name]; !repeated { // the first of repeated headers counts
			found.headers[name] = value
		}
	}
	length := bytes.IndexByte(message, 0)
	if told, ok := found.headers["content-length"]; ok {
		parsed, err := strconv.ParseUint(told, 10, 31)
		if err != nil {
			return frame{}, nil, errFrame
		}
		length = int(parsed)
	}
	if length < 0 || length >= len(message) || message[length] != 0 {
		return frame{}, nil, errFrame
	}
	found.body = message[:length]
	return found, message[length+1:], nil
}

func unescape(text string) (string, error) {
	if !strings.Contains(text, "\\") {
		return text, nil
	}
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out.WriteByte(text[i])
			continue
		}
		i++
		if i == len(text) {
			return "", errFrame
		}
		at := strings.IndexByte("rnc\\", text[i])
		if at < 0 {
			return "", errFrame
		}
		out.WriteByte("\r\n:\\"[at])
	}
	return out.String(), nil
}
